"""The small picture on each node's help page: the node with its sockets and widgets, and what is usually wired to it. A
drawing, not a screenshot.

usage: python tools/node_pictures.py        (writes web/docs/<NodeId>.svg)
"""

from troupe_tools.dev.node_pictures import main

if __name__ == "__main__":
    main()
