"""Thumbnails of the template workflows: the references and the graph, drawn from the workflow's own node rectangles.

usage: python tools/thumbnails.py [NAME ...]

Only the rehearsal templates show samples, painted with the models that come with the pack; without the published
weights there are none of the others to show.
"""

import sys

from troupe_tools.dev.thumbnails import main

if __name__ == "__main__":
    main(sys.argv[1:])
