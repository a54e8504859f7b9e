{{/* Refusals that the schema can't express, because they need a model merged with the defaults. Each names the key. */}}

{{- define "predictors.refuse" -}}
{{- $root := index . 0 -}}{{- $name := index . 1 -}}{{- $m := index . 2 -}}
{{- $at := printf "models.%s" $name -}}
{{- include "predictors.refuse.storage" (list $at $m) -}}
{{- include "predictors.refuse.replicas" (list $at $m) -}}
{{- include "predictors.refuse.scaler" (list $at $m) -}}
{{- include "predictors.refuse.times" (list $at $m) -}}
{{- include "predictors.refuse.owned" (list $at $m) -}}
{{- include "predictors.refuse.provenance" (list $root $at $m) -}}
{{- include "predictors.refuse.extras" (list $at $m) -}}
{{- include "predictors.refuse.gpu" (list $at $m) -}}
{{- include "predictors.refuse.canary" (list $at $m) -}}
{{- include "predictors.refuse.activator" (list $root $at $m) -}}
{{- include "predictors.refuse.loras" (list $at $root $m) -}}
{{- range $m.canary -}}
{{- $next := include "predictors.canary" (list $m .) | fromJson -}}
{{- if ne (include "predictors.hasRuntime" (list $root $next)) (include "predictors.hasRuntime" (list $root $m)) -}}
{{- include "predictors.fail" (printf "%s.canary %s.resources removes what the model's ServingRuntime has, and KServe lays a canary over it: remove it in %s.resources, or say another amount" $at .name $at) -}}
{{- end -}}
{{- include "predictors.refuse.loras" (list (printf "%s.canary %s" $at .name) $root $next) -}}
{{- include "predictors.refuse.cards" (list (printf "%s.canary %s" $at .name) $next) -}}
{{- include "predictors.refuse.amounts" (list (printf "%s.canary %s.resources" $at .name) $next.resources) -}}
{{- end -}}
{{- if and $root.Values.localModelCache.enabled (not $m.storage.size) (not (hasPrefix "pvc://" $m.storage.uri)) -}}
{{- include "predictors.fail" (printf "%s.storage.size is needed by localModelCache.enabled: how large is %s?" $at $m.storage.uri) -}}
{{- end -}}
{{- end }}

{{/* What a model says of its own and no pod of it would have: (list path said model) */}}
{{- define "predictors.refuse.unused" -}}
{{- $at := index . 0 -}}{{- $said := index . 1 -}}{{- $m := index . 2 -}}
{{- if not (or (int $m.gpu.count) $m.resourceClaims) -}}
{{- range $key := list "nodeSelector" "runtimeClassName" "tolerations" -}}
{{- if dig "gpu" $key "" $said -}}
{{- include "predictors.fail" (printf "%s.gpu.%s has no effect with gpu.count 0: say %s.%s, which pods without a GPU have as well" $at $key $at $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if regexMatch `^(hf|s3|gs|https?)://` (default "" $m.storage.uri) -}}
{{- range $i, $each := $m.env -}}
{{- if regexMatch `^(HF_TOKEN|HF_ENDPOINT|HUGGING_FACE_HUB_TOKEN|AWS_ACCESS_KEY_ID|AWS_SECRET_ACCESS_KEY|AWS_ENDPOINT_URL|S3_ENDPOINT|GOOGLE_APPLICATION_CREDENTIALS)$` $each.name -}}
{{- include "predictors.fail" (printf "%s.env[%d] %s is the server's, and %s is downloaded before, by KServe's container, which has other variables: say storage.secretName for credentials, and a ClusterStorageContainer (storage.containerName) for addresses" (ternary $at "defaults" (hasKey $said "env")) $i $each.name $m.storage.uri) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end }}

{{- define "predictors.refuse.storage" -}}
{{- $at := first . -}}{{- $m := last . -}}
{{- if not $m.format -}}
{{- include "predictors.fail" (printf "%s.format is needed: flux or qwen-vl" $at) -}}
{{- end -}}
{{- $versions := get (include "predictors.versions" $m | fromJson) $m.format -}}
{{- if and $m.formatVersion (not (has $m.formatVersion $versions)) -}}
{{- include "predictors.fail" (printf "%s.formatVersion is %q: %s has %s" $at $m.formatVersion $m.format (join " and " $versions)) -}}
{{- end -}}
{{- if not $m.storage.uri -}}
{{- include "predictors.fail" (printf "%s.storage.uri is needed: pvc://claim/path, hf://organisation/model or oci://registry/image; s3://, gs:// and https:// as well" $at) -}}
{{- end -}}
{{- if and $m.storage.secretName (not $m.serviceAccount.create) -}}
{{- include "predictors.fail" (printf "%s.storage.secretName has no effect with serviceAccount.create false: list the Secret in the account %q yourself" $at $m.serviceAccount.name) -}}
{{- end -}}
{{- if and $m.serviceAccount.annotations (not $m.serviceAccount.create) -}}
{{- include "predictors.fail" (printf "%s.serviceAccount.annotations have no effect with serviceAccount.create false: annotate the account %q yourself" $at $m.serviceAccount.name) -}}
{{- end -}}
{{- if and $m.cache.precompile (not $m.cache.enabled) -}}
{{- include "predictors.fail" (printf "%s.cache.precompile needs cache.enabled: there is nothing to fill" $at) -}}
{{- end -}}
{{- if and $m.cache.precompile (not (hasPrefix "pvc://" $m.storage.uri)) -}}
{{- include "predictors.fail" (printf "%s.cache.precompile needs storage.uri pvc://: %s is only downloaded into servers, and the first of those fills the cache" $at $m.storage.uri) -}}
{{- end -}}
{{- end }}

{{- define "predictors.refuse.replicas" -}}
{{- $at := first . -}}{{- $m := last . -}}
{{- $min := int $m.replicas.min -}}{{- $max := int $m.replicas.max -}}
{{- if and $max (gt $min $max) -}}
{{- include "predictors.fail" (printf "%s.replicas.min is %d and more than replicas.max, %d" $at $min $max) -}}
{{- end -}}
{{- if and (eq $min 0) (not $m.autoscaling.enabled) -}}
{{- include "predictors.fail" (printf "%s.replicas.min 0 needs autoscaling.enabled: nothing else would ever start a pod" $at) -}}
{{- end -}}
{{- if and (eq $min 0) (ne $m.autoscaling.class "keda") -}}
{{- include "predictors.fail" (printf "%s.replicas.min 0 needs autoscaling.class keda: a HorizontalPodAutoscaler keeps one pod, and of another scaler the chart knows nothing" $at) -}}
{{- end -}}
{{- if and (eq $min 0) (not $m.autoscaling.wakeQuery) (not $m.activator.enabled) -}}
{{- include "predictors.fail" (printf "%s.replicas.min 0 needs activator.enabled, or autoscaling.wakeQuery: Standard mode has no activator of its own, and a model without pods has no load to measure" $at) -}}
{{- end -}}
{{- if and (gt $max $min) (not $m.autoscaling.enabled) -}}
{{- include "predictors.fail" (printf "%s.replicas.max %d needs autoscaling.enabled: without it there are always replicas.min, %d" $at $max $min) -}}
{{- end -}}
{{- if and $m.autoscaling.enabled (lt (max $max $min) 1) -}}
{{- include "predictors.fail" (printf "%s.replicas.max must be at least 1 with autoscaling.enabled" $at) -}}
{{- end -}}
{{- $isAlone := and (eq (max $max $min) 1) (not $m.autoscaling.enabled) (not $m.canary) -}}
{{- if and (dig "server" "public_url" "" $m.settings) (not $isAlone) -}}
{{- include "predictors.fail" (printf "%s.settings.server.public_url needs one replica, without autoscaling and canaries: an address is known to the pod alone that drew the picture" $at) -}}
{{- end -}}
{{- end }}

{{- define "predictors.refuse.activator" -}}
{{- $root := index . 0 -}}{{- $at := index . 1 -}}{{- $m := index . 2 -}}
{{- if and $m.activator.enabled (hasKey $root.Values.models (printf "%s-activator" (trimPrefix "models." $at))) -}}
{{- include "predictors.fail" (printf "%s.activator.enabled and %s-activator: the objects of that model would have the names of the activator's. Give the model another name" $at $at) -}}
{{- end -}}
{{- if and $m.activator.enabled (gt (int $m.replicas.min) 0) -}}
{{- include "predictors.fail" (printf "%s.activator.enabled needs replicas.min 0, which is %d: a model that always has a pod is never woken" $at (int $m.replicas.min)) -}}
{{- end -}}
{{- $policy := $root.Values.networkPolicy -}}
{{- if and $m.activator.enabled $policy.enabled (not $policy.dnsTo) (not $policy.extraEgress) -}}
{{- include "predictors.fail" (printf "%s.activator.enabled needs networkPolicy.dnsTo: it looks the model's Service up by name, and would hold every request until waitTimeoutSeconds" $at) -}}
{{- end -}}
{{- if and $m.activator.enabled $root.Values.tls.secretName -}}
{{- include "predictors.fail" (printf "%s.activator.enabled and tls.secretName exclude each other: the activator speaks plain HTTP on both sides. Say TLS at the gateway or in the mesh, or activator.enabled false with an autoscaling.wakeQuery" $at) -}}
{{- end -}}
{{- end }}

{{/* What one class of autoscaling reads and another does not. */}}
{{- define "predictors.refuse.scaler" -}}
{{- $at := first . -}}{{- $scaling := (last .).autoscaling -}}
{{- if $scaling.enabled -}}
{{- $of := dict "keda" (list "query" "wakeQuery" "authenticationRef" "authModes") "hpa" (list "metrics" "targetCPUUtilizationPercentage" "targetMemoryUtilizationPercentage") -}}
{{- range $class, $keys := $of -}}
  {{- range $keys -}}
  {{- if and (ne $class $scaling.class) (get $scaling .) -}}
  {{- include "predictors.fail" (printf "%s.autoscaling.%s is for autoscaling.class %s, and the class is %s: take the key out, or say class %s" $at . $class $scaling.class $class) -}}
  {{- end -}}
  {{- end -}}
{{- end -}}
{{- if and (eq $scaling.class "hpa") (not (or $scaling.metrics $scaling.targetCPUUtilizationPercentage $scaling.targetMemoryUtilizationPercentage)) -}}
{{- include "predictors.fail" (printf "%s.autoscaling.class hpa needs something to scale by: say autoscaling.metrics, targetCPUUtilizationPercentage or targetMemoryUtilizationPercentage" $at) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{- define "predictors.refuse.times" -}}
{{- $at := first . -}}{{- $m := last . -}}
{{- if lt (int $m.drain.graceSeconds) (int $m.timeoutSeconds) -}}
{{- include "predictors.fail" (printf "%s.drain.graceSeconds is %d and less than timeoutSeconds, %d: a request that was accepted would be cut" $at (int $m.drain.graceSeconds) (int $m.timeoutSeconds)) -}}
{{- end -}}
{{- $deadline := dig "queue" "default_timeout_s" 0 $m.settings | float64 -}}
{{- if gt $deadline (float64 $m.timeoutSeconds) -}}
{{- include "predictors.fail" (printf "%s.settings.queue.default_timeout_s is %v and more than timeoutSeconds, %d: the gateway would give up before the server does" $at $deadline (int $m.timeoutSeconds)) -}}
{{- end -}}
{{- end }}

{{/* Settings that belong to the chart: ports and folders are wired to the pod. */}}
{{- define "predictors.refuse.owned" -}}
{{- $at := first . -}}{{- $settings := (last .).settings -}}
{{- $owned := dict "server.health_port" "say health.port" "server.metrics_port" "say metrics.port" "access.keys_file" "say apiKeys" "access.open" "say apiKeys, or nothing" "access.caller_header" "say callers.header" "access.trusted_proxies" "say callers.trustedProxies" "tls.cert_file" "say tls.secretName" "tls.key_file" "say tls.secretName" "tls.client_ca_file" "say tls.clientCaSecretName" "flux.c2pa_cert_file" "say c2pa.secretName" "flux.c2pa_key_file" "say c2pa.secretName" "flux.memory_fraction" "say gpuMemoryFraction" "qwen_vl.memory_fraction" "say gpuMemoryFraction" "flux.checker" "say checker.uri" "flux.checker_labels" "say checker.labels" "flux.checker_threshold" "say checker.threshold" "flux.checker_action" "say checker.action" "server.host" "pods listen on every address" "server.port" "the runtime's port is 8080" "server.grpc_port" "the runtime's port is 8081" "server.loras" "say loras" "server.linger_s" "say drain.lingerSeconds" "server.drain_timeout_s" "say drain.graceSeconds" "compute.cache_dir" "say cache.enabled" "cluster.events" "say events.enabled, which mounts the token as well" -}}
{{- range $key, $why := $owned -}}
{{- $path := splitList "." $key -}}
{{- if hasKey (get $settings (first $path) | default dict) (last $path) -}}
{{- include "predictors.fail" (printf "%s.settings.%s is the chart's: %s" $at $key $why) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{- define "predictors.refuse.gpu" -}}
{{- $at := first . -}}{{- $m := last . -}}
{{- $count := int $m.gpu.count -}}{{- $spare := int $m.gpu.spare -}}
{{- if and $count (regexMatch `^(amd\.com|gpu\.intel\.com|habana\.ai|aws\.amazon\.com|google\.com|huawei\.com)/` $m.gpu.resource) -}}
{{- include "predictors.fail" (printf "%s.gpu.resource is %s: the server runs on NVIDIA's cards alone (CUDA); say nvidia.com/gpu or a MIG slice, or gpu.count 0 for the CPU" $at $m.gpu.resource) -}}
{{- end -}}
{{- if and $count $m.resourceClaims -}}
{{- include "predictors.fail" (printf "%s.gpu.count is %d and resourceClaims bring a card as well, of which one process drives one: say gpu.count 0" $at $count) -}}
{{- end -}}
{{- include "predictors.refuse.cards" (list $at $m) -}}
{{- include "predictors.refuse.amounts" (list (print $at ".resources") $m.resources) -}}
{{- if $m.activator.enabled }}{{ include "predictors.refuse.amounts" (list (print $at ".activator.resources") $m.activator.resources) }}{{ end -}}
{{- if and $count (eq $m.rollout "surge") (lt $spare $count) -}}
{{- include "predictors.fail" (printf "%s.rollout surge needs gpu.spare of at least %d: the new pod asks for a GPU before the old one gives its own back. One-GPU nodes take rollout in-place" $at $count) -}}
{{- end -}}
{{- if and $count $m.cache.precompile (lt $spare $count) -}}
{{- include "predictors.fail" (printf "%s.cache.precompile needs gpu.spare of at least %d: the Job compiles on a GPU while the servers hold theirs" $at $count) -}}
{{- end -}}
{{- end }}

{{- define "predictors.refuse.canary" -}}
{{- $at := first . -}}{{- $m := last . -}}
{{- $names := list -}}{{- $total := 0 -}}{{- $pods := 0 -}}{{- $min := int $m.replicas.min -}}
{{- if and $m.canary $m.autoscaling.enabled -}}
{{- include "predictors.fail" (printf "%s.canary and %s.autoscaling.enabled exclude each other: canaries take their pods from a fixed replicas.min, and of class keda KServe 0.20 makes a ScaledObject without triggers for the canary, which KEDA refuses, and the model is never reconciled again" $at $at) -}}
{{- end -}}
{{- range $i, $canary := $m.canary -}}
  {{- if has $canary.name $names -}}
  {{- include "predictors.fail" (printf "%s.canary[%d].name %q is taken by another canary" $at $i $canary.name) -}}
  {{- end -}}
  {{- $names = append $names $canary.name -}}
  {{- $total = add $total (int $canary.trafficPercent) -}}
  {{- /* as KServe counts: a canary without `replicas` gets its share of the pods, rounded up */ -}}
  {{- $pods = add $pods (int (default (div (add (mul $min (int $canary.trafficPercent)) 99) 100) $canary.replicas)) -}}
  {{- if gt (int (default 0 $canary.replicas)) (int $m.replicas.min) -}}
  {{- include "predictors.fail" (printf "%s.canary[%d].replicas is %d and more than replicas.min, %d, which KServe refuses" $at $i (int $canary.replicas) (int $m.replicas.min)) -}}
  {{- end -}}
{{- end -}}
{{- if gt (int $total) 100 -}}
{{- include "predictors.fail" (printf "%s.canary: trafficPercent of all canaries together is %d, more than 100" $at (int $total)) -}}
{{- end -}}
{{- /* canaries take their pods from the stable revision's, of which one always stays */ -}}
{{- $needed := mul (int $m.gpu.count) (sub (add (max (sub $min $pods) 1) $pods) $min) -}}
{{- if gt (int $needed) (int $m.gpu.spare) -}}
{{- include "predictors.fail" (printf "%s.canary needs gpu.spare of at least %d: beside its pods KServe keeps one of the stable revision, and replicas.min is %d" $at (int $needed) $min) -}}
{{- end -}}
{{- end }}

{{/* Volumes, mounts and containers beside the chart's and KServe's, whose names they can't take: KServe would merge two of one name. */}}
{{- define "predictors.refuse.extras" -}}
{{- $at := first . -}}{{- $m := last . -}}
{{- $claims := include "predictors.besideClaims" (list $m) | fromJsonArray -}}
{{- $claims = append $claims (include "predictors.claimOf" (list $m.storage.uri)) -}}
{{- $taken := list "tmp" "shm" "cache" "compiled" "checkpoint" "checker" "colocated" "keys" "tls" "client-ca" "c2pa" -}}
{{- range $i, $each := $m.extraVolumes -}}
  {{- if or (has $each.name $taken) (regexMatch `^(claim-\d+|kserve-.*)$` $each.name) -}}
  {{- include "predictors.fail" (printf "%s.extraVolumes[%d].name %q is taken by a volume of the chart, of KServe or before it: take another name" $at $i $each.name) -}}
  {{- end -}}
  {{- $taken = append $taken $each.name -}}
  {{- with get (get $each "persistentVolumeClaim" | default dict) "claimName" -}}
  {{- if has . $claims -}}
  {{- include "predictors.fail" (printf "%s.extraVolumes[%d] is a second volume of the claim %s, for which a kubelet waits for ever: put its files on a claim of their own" $at $i .) -}}
  {{- end -}}
  {{- $claims = append $claims . -}}
  {{- end -}}
{{- end -}}
{{- $paths := list "/tmp" "/dev/shm" "/mnt/models" "/var/cache/predictors" "/checker" "/colocated" "/etc/predictors/keys" "/etc/predictors/tls" "/etc/predictors/client-ca" "/etc/predictors/c2pa" -}}
{{- range $i, $each := $m.extraVolumeMounts -}}
  {{- $path := trimSuffix "/" $each.mountPath -}}
  {{- if or (has $path $paths) (regexMatch `^(/loras|/mnt/loras|/mnt/colocated|/opt/venv|/opt/predictors)(/|$)` $path) -}}
  {{- include "predictors.fail" (printf "%s.extraVolumeMounts[%d].mountPath %s is the chart's or another's: take another path; tmp.size, shm.size and cache change the chart's own" $at $i $each.mountPath) -}}
  {{- end -}}
  {{- $paths = append $paths $path -}}
{{- end -}}
{{- $names := list -}}
{{- range concat (default list $m.initContainers) (default list $m.extraContainers) -}}
  {{- if has .name $names -}}
  {{- include "predictors.fail" (printf "%s: two of initContainers and extraContainers have the name %q" $at .name) -}}
  {{- end -}}
  {{- $names = append $names .name -}}
{{- end -}}
{{- end }}
