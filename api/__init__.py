"""The HTTP face: reads the live policy and the status; imports `reconciler`, never the other way round."""
