"""The Cosmos families on one transformer: Predict1, Predict2, Predict2.5 and Transfer2.5."""
