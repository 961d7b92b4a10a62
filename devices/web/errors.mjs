// Every error we raise on purpose, with the exit codes of edgefl/errors.py.

/** One clear line for a person, and perhaps a hint: what to do next. */
export class EdgeflError extends Error {
  exitCode = 1;

  constructor(message, hint) {
    super(message);
    this.hint = hint;
  }
}

/** A bundle that is damaged, of a newer format, or does not fit. */
export class BundleError extends EdgeflError {
  exitCode = 3;
}

/** A program that does not compute what PyTorch computes. */
export class ParityError extends EdgeflError {
  exitCode = 6;
}
