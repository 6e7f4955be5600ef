"""What is done to the weights of a whole model: ``apply`` normalizes its layers, ``originals``
initializes what is normalized, ``clip`` bounds norms after the optimizer's step.
"""
