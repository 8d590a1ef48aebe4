"""The commands, one module a topic; `regops.cli` registers them."""
