"""What the reports of all studies share: the page, the pictures in it, the statistics, the reading of results."""
