"""Vision Predictors: FLUX.1 and Qwen-VL served through KServe. Importing the package starts
nothing.
"""

__version__ = "0.2.0"
