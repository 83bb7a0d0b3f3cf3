"""The method as functions of tensors: visual advantage, weights and the loss; torch only."""
