"""What SOCK runs on the inside: the zygote and the cells it forks; standard library of Python 3.9+ and linux.py only."""
