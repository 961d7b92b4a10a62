"""What is believed of a stranger: a program is walked before anything runs it."""
