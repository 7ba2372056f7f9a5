"""What a run leaves for a reader: figures and one HTML page, drawn from the run folder's results.csv.

summary.py reads results.csv and averages over seeds, plots.py draws the figures, page.py writes report.html.
Nothing is imported here, so that the averages can be had without waiting for matplotlib.
"""
