"""What the reports of all studies share: results and their statistics, figures, curves, cells of tables, the page."""
