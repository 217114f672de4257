"""What travels between client and server: messages and their bytes. Opens no socket, imports no torch."""
