from benchmark.files import write_atomically, write_text

__all__ = ["write_atomically", "write_text"]
