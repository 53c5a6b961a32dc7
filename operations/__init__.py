"""Operations that pyinfra lacks. Each declares many things at once, and names what it changes."""
