"""To other formats: the same codes and scales in the layout that another program reads."""
