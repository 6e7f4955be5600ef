"""What setup.py and the build backend share. Not part of the installed package."""
