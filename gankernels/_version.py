#: The version, as the package index has it.
__version__ = "0.1.0"
