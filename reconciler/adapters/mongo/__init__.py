"""MongoDB through pymongo's asynchronous client: versions, receipts and the projection of the audit log.

Within what MongoDB 6 and later, Atlas and SecantusDB have in common: no transactions, change streams or aggregation.
"""

from reconciler.adapters.mongo.audit import MongoAudit
from reconciler.adapters.mongo.client import MongoDatabase
from reconciler.adapters.mongo.receipts import MongoReceipts
from reconciler.adapters.mongo.versions import MongoVersions

__all__ = ["MongoAudit", "MongoDatabase", "MongoReceipts", "MongoVersions"]
