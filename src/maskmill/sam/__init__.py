"""SAM: encoder, prompt encoder, decoder, checkpoints, predictor."""
