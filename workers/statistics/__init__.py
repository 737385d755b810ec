"""Statistics of items: what one task counts in a batch of them, how such counts add up, and what they say in the end.

Counts are integers, and sums of reals are added in the order of the items, so a result depends on neither the number of
workers nor on who came first.
"""
