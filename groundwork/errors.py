"""What is told to the user."""

from pyinfra.api.exceptions import PyinfraError


class Refusal(PyinfraError):
    """Something to put right in what the user wrote: an inventory, a setting, a command line."""

    @property
    def __traceback__(self):
        """None: pyinfra shows the line of code that raised an error, by this attribute, and would send
        its reader to the wrong file."""
        return None

    @__traceback__.setter
    def __traceback__(self, value):
        """gevent sets it when an error crosses a greenlet."""
