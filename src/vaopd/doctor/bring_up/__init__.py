"""The first checks on a new card, in the order in which their failures explain each other."""
