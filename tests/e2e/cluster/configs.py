"""Configuration of containerd, the CNI plugins, the kubelet, kube-proxy and CoreDNS, rendered from
the folders of a site. Pure but for `write_configs`; starts nothing.
"""

from __future__ import annotations

import json
from typing import Any

from tests.e2e.cluster.identities import NODE
from tests.e2e.cluster.places import Site

# the bridge is made before the first pod, so that its own address can be the node's
NODE_ADDRESS = "10.244.0.1"
POD_NET, SERVICE_NET, API_ADDRESS = "10.244.0.0/24", "10.96.0.0/16", "10.96.0.1"
FIRST_POD_ADDRESS = "10.244.0.10"
CGROUP = "vision-predictors-e2e"
PAUSE_IMAGE = "localhost/pause:e2e"
UNUSED_PLUGINS = (
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.zfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.tracing.processor.v1.otlp",
    "io.containerd.internal.v1.opt",
)
CRI_PLUGIN = "io.containerd.grpc.v1.cri"


def containerd_config(site: Site, runc: str = "/usr/sbin/runc", cri: bool = True) -> str:
    """containerd's TOML; without the CRI plugin it can forget the pods of a run before."""
    disabled = [*UNUSED_PLUGINS, *([] if cri else [CRI_PLUGIN])]
    # without restrict_oom_score_adj every sandbox fails where CAP_SYS_RESOURCE is missing
    return f'''version = 2
root = "{site.images}"
state = "{site.run}/containerd"
oom_score = 0
disabled_plugins = {json.dumps(disabled)}
[grpc]
  address = "{site.containerd}"
[ttrpc]
  address = "{site.containerd}.ttrpc"
[plugins."{CRI_PLUGIN}"]
  restrict_oom_score_adj = true
  sandbox_image = "{PAUSE_IMAGE}"
  disable_apparmor = true
  [plugins."{CRI_PLUGIN}".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{site.config}/cni"
  [plugins."{CRI_PLUGIN}".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."{CRI_PLUGIN}".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."{CRI_PLUGIN}".containerd.runtimes.runc.options]
        BinaryName = "{runc}"
        SystemdCgroup = false
'''


def cni_config(site: Site) -> dict[str, Any]:
    """A bridge with addresses handed out from files."""
    addresses = {
        "type": "host-local",
        "dataDir": str(site.state / "cni"),
        "ranges": [[{"subnet": POD_NET, "rangeStart": FIRST_POD_ADDRESS}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "ipMasq": False,
        "hairpinMode": True,
        "ipam": addresses,
    }
    ports = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "0.4.0", "name": "e2e", "plugins": [bridge, ports]}


def kubelet_config(site: Site) -> dict[str, Any]:
    """The kubelet in a private cgroup, without image collection and without host tuning."""
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": f"unix://{site.containerd}",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},  # metrics-server comes with a token
            "x509": {"clientCAFile": str(site.certificates / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{CGROUP}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "oomScoreAdj": 0,
        "maxOpenFiles": 20000,
        "makeIPTablesUtilChains": False,
        "evictionHard": {
            "memory.available": "100Mi",
            "nodefs.available": "1%",
            "imagefs.available": "1%",
        },
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "resolvConf": str(site.config / "resolv.conf"),
        "clusterDNS": [NODE_ADDRESS],
        "clusterDomain": "cluster.local",
        "volumePluginDir": str(site.state / "volume-plugins"),
        "podLogsDir": str(site.state / "pod-logs"),
        "syncFrequency": "5s",  # a changed Secret reaches its pods that soon
        "nodeStatusUpdateFrequency": "5s",
        "fileCheckFrequency": "10s",
        "maxPods": 100,
        "shutdownGracePeriod": "0s",
    }


def proxy_config(site: Site) -> dict[str, Any]:
    """kube-proxy in nftables mode, quick to follow, with the machine's conntrack left alone."""
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clusterCIDR": POD_NET,
        "hostnameOverride": NODE,
        "clientConnection": {"kubeconfig": str(site.kubeconfig("kube-proxy"))},
        "bindAddress": NODE_ADDRESS,
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        "nftables": {"minSyncPeriod": "100ms"},
        "conntrack": {
            "maxPerCore": 0,
            "min": 0,
            "tcpEstablishedTimeout": "0s",
            "tcpCloseWaitTimeout": "0s",
        },
    }


def dns_config(site: Site) -> str:
    """CoreDNS for the cluster's own names, and for no others."""
    return f""".:53 {{
  bind {NODE_ADDRESS}
  ready 127.0.0.1:18053
  errors
  cache 1
  kubernetes cluster.local in-addr.arpa {{
    kubeconfig {site.kubeconfig("coredns")} e2e
    ttl 1
  }}
}}
"""


def write_configs(site: Site, runc: str) -> None:
    """Write every file of this module into the site's config folder."""
    (site.config / "cni").mkdir(parents=True, exist_ok=True)
    (site.config / "cni" / "10-e2e.conflist").write_text(json.dumps(cni_config(site)))
    (site.config / "containerd.toml").write_text(containerd_config(site, runc))
    (site.config / "containerd-bare.toml").write_text(containerd_config(site, runc, cri=False))
    (site.config / "resolv.conf").write_text("")
    (site.config / "kubelet.yaml").write_text(json.dumps(kubelet_config(site)))
    (site.config / "proxy.yaml").write_text(json.dumps(proxy_config(site)))
    (site.config / "Corefile").write_text(dns_config(site))
