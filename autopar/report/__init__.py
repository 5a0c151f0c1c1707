"""A plan as one self-contained HTML page that people can read: `page(evidence)`, with evidence from `evidence.py`."""
