"""``regops check --base``: what a pull request would change, as its reviewers ask it."""
