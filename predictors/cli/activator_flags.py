"""Flags of the verb `activator`: the model that it stands before. Its bounds and times are settings
(`PREDICTORS_ACTIVATOR_*`), like its ports.
"""

from __future__ import annotations

import argparse


def activator_flags(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--model", required=True, metavar="NAME", help="the model, in metrics and messages"
    )
    verb.add_argument(
        "--upstream",
        required=True,
        metavar="URL",
        help="the model's Service, such as http://flux-predictor.vision.svc",
    )
    verb.add_argument(
        "--grpc-upstream",
        default="",
        metavar="HOST:PORT",
        help="its gRPC port, such as flux-predictor.vision.svc:8081 (default: no gRPC)",
    )
    verb.add_argument(
        "--deployment",
        required=True,
        metavar="NAME",
        help="the Deployment whose replicas are set from 0 to 1, in the pod's namespace",
    )
