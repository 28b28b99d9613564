"""What the product says of itself: JSON-able values made from the compiler, the catalog and the server.

The admin endpoint serves them, the command line prints them; neither decides anything.
"""
