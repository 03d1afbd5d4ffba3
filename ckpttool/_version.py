"""The version, where everything that names it can import it without the package's public names."""

__version__ = "0.1.0"
