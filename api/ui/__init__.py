"""The status page: what is live, what is held and why, who enforces it. For people, with and without scripts."""
