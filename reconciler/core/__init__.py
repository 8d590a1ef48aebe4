"""Pure decisions and the words that they are made of: no IO, no clock, no logging."""
