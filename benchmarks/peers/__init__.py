"""regops beside other programs for the same purpose, each from its own package index, in an environment of its own."""
