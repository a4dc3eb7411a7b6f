"""What is checked before any GPU-hour is spent: the machine, what is installed, and what the runs need."""
