"""What `Location.read_into` gives, as bytes."""


def filled(file, start, size, *, whole=False):
    """Bytes from `start`; what lies behind those that there were is left as it was."""
    target = bytearray(size)
    there = file.read_into(start, memoryview(target), whole=whole)
    assert target[there:] == bytes(size - there)
    return bytes(target[:there])
