"""``make gpu-report``: parts, how they are run, and the page and pictures about them."""
