"""What another value of a key does to a run that goes on from a checkpoint."""

NETWORK = "other arrays: the checkpoint fits only where the shapes stay the same"
OPTIMIZER = "another update rule: the checkpoint fits only where it keeps the same memory"
ORDER = "other images in another order from here on"
ORDER_AND_SCHEDULE = "order and schedule change: an epoch has another number of steps"
SCHEDULE = "the learning rate follows the new schedule, the length of the run changes"
UPDATE = "weights are updated by the new rule from here on"
VIEWS = "views are made in the new way from here on"
LOSS = "the loss is another one: it does not compare with the curve before"
NUMERICS = "numbers are computed in another way: small differences from here on"
MEASURE = "what is measured does not compare with earlier values"
NOTHING = "nothing that is trained changes"

STATE = (NETWORK, OPTIMIZER)  # what may keep a checkpoint from fitting
