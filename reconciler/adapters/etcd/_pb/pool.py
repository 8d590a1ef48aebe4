"""A descriptor pool of our own: etcd's message names stay free for any other etcd client in the same process, which
would otherwise fail with ``duplicate symbol mvccpb.KeyValue``.
"""

from google.protobuf.descriptor_pool import DescriptorPool

POOL = DescriptorPool()
