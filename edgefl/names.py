"""What exporter, methods and devices call the same thing: names of tensors, outputs and settings, each once.

A name that only one of them uses is not here, nor are those of programs: `Task(program="dream")` says all there is to
say, and a bundle without the program is refused before the run.
"""

# Of every program
FEATURES, LABELS = "x", "y"  # inputs that a feed fills
LEARNING_RATE = "learning_rate"
GRADIENT = "gradient."  # what the outputs that hold a parameter's gradient begin with
OPTIMIZER = "optimizer."  # what every name of an optimizer's state begins with

# FedProx: the setting that is mu; FedDyn's alpha
PROXIMAL = "proximal"

# SCAFFOLD: of each parameter everybody's mean gradient, by how much the device's own changed, and what that is made of
CONTROL, CONTROL_CHANGE = "control.", "control_change."
CONTROL_SUM, CONTROL_STEPS = f"{OPTIMIZER}control_sum.", f"{OPTIMIZER}control_steps"

# FedMRL: what the tensors of the model that all share begin with
SMALL = "small."

# DEQ-FL: settings of a solve
MAX_STEPS, TOLERANCE = "max_steps", "tolerance"

# FedProto: of each class the mean of its features and whether there is one; sums and counts of a device's own
PROTOTYPES, KNOWN = "prototypes", "known"
PROTOTYPE_SUMS, PROTOTYPE_COUNTS = "prototype_sums", "prototype_counts"
PROTOTYPE_WEIGHT = "prototype_weight"

# CoDream: what devices answer, and the settings of their programs
DREAM_GRADIENT, DREAM_CHANGE, PROBABILITIES = "dream_gradient", "dream_change", "probabilities"
ENTROPY, STATISTICS, TOTAL_VARIATION, L2 = "entropy", "statistics", "total_variation", "l2"  # factors of the terms of L
GRADIENT_SCALE = "gradient_scale"
STEPS, STEP_SIZE = "steps", "step_size"
TEMPERATURE = "temperature"
OBSERVED_EXAMPLES = "observed.examples"  # of how many a model without BatchNorm has seen the statistics
DREAMS, NEAREST = "dreams", "nearest"  # that are compared with own images, and the likeness of each to the nearest
LIKENESS_MOST = "likeness_most"
GENERATOR = "generator."  # what the tensors of the generator begin with
GRADIENT_Z = "gradient_z"  # the gradient by what a generator is given
