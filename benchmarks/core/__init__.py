"""What every benchmark stands on: the machine, timing in turns, and what memory allows."""
