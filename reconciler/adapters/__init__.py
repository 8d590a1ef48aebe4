"""One adapter per outside system; each imports its own client library and none knows another."""
