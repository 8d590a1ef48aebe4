"""What regops costs, measured on this machine: ``make bench``. Tables on standard output and in ``results/``."""
