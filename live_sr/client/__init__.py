"""What any client needs, without pymmcore-plus: the link to a server, volumes, their journal, the feed."""
