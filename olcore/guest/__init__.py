"""What runs inside every sandbox, mounted there as the top-level package ``olguest``; standard library of Python 3.9+."""
