{{/* The text that Helm prints after an install. */}}
{{- define "predictors.notes" -}}
{{- $models := include "predictors.rooms" . | fromJson }}
{{- $guest := ternary (include "predictors.guest" (list . $models)) "" (not (empty .Values.colocate)) }}
{{- $port := 18079 }}
{{- $scheme := ternary "http" "https" (empty .Values.tls.secretName) }}
{{- $picture := .Files.Get "files/circle.png" | b64enc }}
{{- if include "predictors.keysSecret" . }}
Calls need a key: API_KEY in the lines below.
{{- else }}
WARNING: there are no API keys. Whoever reaches a pod's port is served. See `apiKeys`, `networkPolicy` and docs/security.md.
{{- end }}
{{- if .Values.tls.secretName }}
The lines below trust any certificate (-k){{ if .Values.tls.clientCaSecretName }} and need yours: add --cert and --key{{ end }}.
{{- end }}
{{- range include "predictors.warnings" . | fromJsonArray }}
WARNING: {{ . }}
{{- end }}
{{- range $name, $model := $models }}
{{- $port = add1 $port }}
{{- $host := eq $name $guest | ternary (without (default list $.Values.colocate) $guest | join "") $name }}
{{- $local := printf "%s://127.0.0.1:%d" $scheme (int $port) }}
== {{ $name }} ({{ $model.format }}, {{ $model.storage.uri }}){{ if ne $host $name }}, in the pods of {{ $host }}{{ end }}
{{ include "predictors.state" (list $ $host) }}
kubectl -n {{ include "predictors.namespace" $ }} wait --for=condition=Ready isvc/{{ $host }} --timeout={{ int $model.probes.startup.budgetSeconds }}s
kubectl -n {{ include "predictors.namespace" $ }} port-forward svc/{{ include "predictors.calledService" (list $ $name $model) }} {{ $port }}:80 &
{{- if eq (dig "server" "playground" "auto" $model.settings) "on" }}
page for browsers: {{ $local }}/playground
{{- end }}
{{- if eq (dig "server" "docs" "auto" $model.settings) "on" }}
page of the API: {{ $local }}/docs
{{- end }}
{{ include "predictors.curl" (list $ $name $model $local $picture) }}
# in the cluster, from a pod that may call it:
{{ include "predictors.curl" (list $ $name $model (include "predictors.address" (list $ (include "predictors.calledService" (list $ $name $model)))) $picture) }}
{{ end }}
{{- with include "predictors.off" . | fromJsonArray }}
Off, and the value that switches it on:
{{- range . }}
- {{ . }}
{{- end }}
{{ end }}
{{- if and .Values.tests.enabled $models }}
One request to each model, when they are ready:
helm -n {{ include "predictors.namespace" . }} test {{ .Release.Name }}
{{- end }}
{{- $longest := 0 }}
{{- range $models }}
{{- if .cache.precompile }}{{ $longest = max $longest (int .probes.startup.budgetSeconds) }}{{ end }}
{{- end }}
{{- if $longest }}

A pre-compile Job may take {{ $longest }} s, Helm waits 5 minutes for a hook: upgrade with `--timeout {{ add (div $longest 60) 5 }}m`.
{{- end }}
{{- if and .Values.prometheusRule.enabled (not .Values.prometheusRule.runbooks) }}

prometheusRule.runbooks is empty: the alerts' runbook_url is a path of the repository. Say where your copy of docs/operations.md is.
{{- end }}
{{- end }}

{{/* What KServe says of a model while these notes are written, which is before an upgrade is carried out: (list root name) */}}
{{- define "predictors.state" -}}
{{- $root := first . -}}
{{- $found := dict -}}
{{- if $root.Capabilities.APIVersions.Has "serving.kserve.io/v1beta1" -}}
{{- $found = lookup "serving.kserve.io/v1beta1" "InferenceService" (include "predictors.namespace" $root) (last .) -}}
{{- end -}}
{{- $ready := dict -}}
{{- range dig "status" "conditions" list $found -}}{{- if eq .type "Ready" }}{{ $ready = . }}{{ end -}}{{- end -}}
{{- if not $found -}}
state: not made yet
{{- else if not $ready -}}
state: KServe has said nothing of it yet
{{- else if eq $ready.status "True" -}}
state: ready since {{ $ready.lastTransitionTime }}, before this command
{{- else -}}
state: not ready before this command{{ with $ready.reason }} ({{ . }}){{ end }}{{ with $ready.message }}: {{ . }}{{ end }}
{{- end -}}
{{- end }}

{{/* What the values leave off, and the key of each, as a JSON list of sentences. */}}
{{- define "predictors.off" -}}
{{- $off := list -}}
{{- $models := include "predictors.models" . | fromJson -}}
{{- range $name, $_ := .Values.models -}}
{{- if not (hasKey $models $name) }}{{ $off = append $off (printf "model %s: models.%s.enabled" $name $name) }}{{ end -}}
{{- end -}}
{{- range $name, $model := $models -}}
{{- $at := printf "models.%s.settings.server" $name -}}
{{- if ne (dig "server" "playground" "auto" $model.settings) "on" }}{{ $off = append $off (printf "page for browsers of %s: %s.playground \"on\"" $name $at) }}{{ end -}}
{{- if ne (dig "server" "docs" "auto" $model.settings) "on" }}{{ $off = append $off (printf "page of the API of %s: %s.docs \"on\"" $name $at) }}{{ end -}}
{{- if not $model.autoscaling.enabled }}{{ $off = append $off (printf "autoscaling of %s: models.%s.autoscaling.enabled" $name $name) }}{{ end -}}
{{- end -}}
{{- if not (include "predictors.keysSecret" .) }}{{ $off = append $off "API keys: apiKeys.secretName" }}{{ end -}}
{{- if not .Values.tls.secretName }}{{ $off = append $off "TLS between gateway and pods: tls.secretName" }}{{ end -}}
{{- if not .Values.networkPolicy.enabled }}{{ $off = append $off "network policies, so that every pod of the cluster may call: networkPolicy.enabled" }}{{ end -}}
{{- range $key, $what := dict "podMonitor" "scraping of the metrics by a Prometheus Operator" "prometheusRule" "alerts" "dashboard" "Grafana dashboard" "events" "Kubernetes events and warm-up progress" "tests" "helm test" -}}
{{- if not (get $.Values $key).enabled }}{{ $off = append $off (printf "%s: %s.enabled" $what $key) }}{{ end -}}
{{- end -}}
{{ toJson $off }}
{{- end }}

{{/* A curl line that works: a picture from a prompt, or words from a picture: (list root name model address picture) */}}
{{- define "predictors.curl" -}}
{{- $root := index . 0 -}}{{- $name := index . 1 -}}{{- $url := index . 3 -}}
{{- $flags := ternary "-sf" "-sfk" (empty $root.Values.tls.secretName) -}}
{{- $headers := "-H 'Content-Type: application/json'" -}}
{{- if include "predictors.keysSecret" $root -}}
{{- $headers = printf "%s -H \"Authorization: Bearer $API_KEY\"" $headers -}}
{{- end -}}
{{- if eq (index . 2).format "flux" -}}
curl {{ $flags }} {{ $url }}/v2/models/{{ $name }}/infer {{ $headers }} -d '{"inputs": [{"name": "prompt", "datatype": "BYTES", "shape": [1], "data": ["a large red circle on a white background"]}], "parameters": {"seed": 7}}' | python3 -c 'import base64, json, sys; sys.stdout.buffer.write(base64.b64decode(next(o["data"][0] for o in json.load(sys.stdin)["outputs"] if o["name"] == "image")))' > {{ $name }}.png
{{- else -}}
curl {{ $flags }} {{ $url }}/v2/models/{{ $name }}/infer {{ $headers }} -d '{"inputs": [{"name": "prompt", "datatype": "BYTES", "shape": [1], "data": ["Describe this picture."]}, {"name": "image", "datatype": "BYTES", "shape": [1], "data": ["{{ index . 4 }}"]}], "parameters": {"max_tokens": 32}}'
{{- end -}}
{{- end }}

{{/* What was said and has no effect, or hardly can be meant, as a JSON list of sentences. */}}
{{- define "predictors.warnings" -}}
{{- $models := include "predictors.models" . | fromJson -}}
{{- $said := list -}}
{{- if not $models -}}
{{- $said = append $said "models has no enabled model, so that nothing is served: set `models`." -}}
{{- end -}}
{{- $routed := false -}}
{{- range $name, $model := $models -}}
  {{- if or $model.canary $model.activator.enabled }}{{ $routed = true }}{{ end -}}
  {{- if and $model.activator.enabled (not $model.autoscaling.wakeQuery) (not $.Values.podMonitor.enabled) -}}
  {{- $said = append $said (printf "models.%s.activator: KEDA reads its requests from Prometheus, and podMonitor.enabled is false. Unless yours scrapes the activator's port `metrics`, KEDA removes the pod that was woken." $name) -}}
  {{- end -}}
  {{- $limit := dig "limits" "memory" "" (default dict $model.resources) | toString -}}
  {{- if and (or (int $model.gpu.count) $model.resourceClaims) (has $limit (list "1Gi" "2Gi" "3Gi" "4Gi" "4G")) -}}
  {{- $said = append $said (printf "models.%s.resources.limits.memory is %s: weights pass through it on their way to the GPU, and a full-size model is killed there. See Sizing in docs/deploy.md." $name $limit) -}}
  {{- end -}}
  {{- if and (not $model.autoscaling.enabled) $model.autoscaling.wakeQuery -}}
  {{- $said = append $said (printf "models.%s.autoscaling.wakeQuery has no effect without autoscaling.enabled." $name) -}}
  {{- end -}}
  {{- if eq (include "predictors.scaler" $model) "hpa" -}}
  {{- range $resource, $percent := dict "cpu" $model.autoscaling.targetCPUUtilizationPercentage "memory" $model.autoscaling.targetMemoryUtilizationPercentage -}}
  {{- if and $percent (not (dig "requests" $resource "" (default dict $model.resources))) (not (dig "limits" $resource "" (default dict $model.resources))) -}}
  {{- $said = append $said (printf "models.%s.resources requests no %s, of which autoscaling would take a percentage: nothing is scaled. Say resources.requests.%s." $name $resource $resource) -}}
  {{- end -}}
  {{- range $i, $each := $model.extraContainers -}}
  {{- if and $percent (not (get (get (get $each "resources" | default dict) "requests" | default dict) $resource)) -}}
  {{- $said = append $said (printf "models.%s.extraContainers[%d] requests no %s: unless the namespace's LimitRange gives it one, Kubernetes can't reckon the pod's percentage, and nothing is scaled. Give it resources.requests, or say autoscaling.metrics of the type ContainerResource." $name $i $resource) -}}
  {{- end -}}
  {{- end -}}
  {{- end -}}
  {{- end -}}
  {{- $port := index (default dict $model.podAnnotations) "prometheus.io/port" -}}
  {{- if and $port (ne $port (include "predictors.metricsPort" $)) -}}
  {{- $said = append $said (printf "models.%s.podAnnotations prometheus.io/port is %s, and the metrics are on %s: say that, or metrics.port." $name $port (include "predictors.metricsPort" $)) -}}
  {{- end -}}
  {{- if regexMatch `^(hf|s3|gs|https?)://` $model.storage.uri -}}
  {{- range $i, $each := $model.env -}}
  {{- if regexMatch `(?i)^https?_proxy$` $each.name -}}
  {{- $said = append $said (printf "models.%s.env[%d] %s is the server's alone: %s is downloaded by KServe's container, which has the variables of its ClusterStorageContainer (storage.containerName)." $name $i $each.name $model.storage.uri) -}}
  {{- end -}}
  {{- end -}}
  {{- end -}}
  {{- if and $.Values.prepull.enabled $model.image -}}
  {{- $said = append $said (printf "models.%s.image is not kept on the nodes: prepull keeps `image`." $name) -}}
  {{- end -}}
  {{- if and $model.storage.secretName (regexMatch `^(pvc|oci|oci\+native)://` $model.storage.uri) -}}
  {{- $said = append $said (printf "models.%s.storage.secretName has no effect with %s: nothing is downloaded; an image takes imagePullSecrets." $name $model.storage.uri) -}}
  {{- end -}}
{{- end -}}
{{- with include "predictors.globals" . | fromJsonArray -}}
{{- $said = append $said (printf "global has %s, of which the chart reads nothing; templates in the values may (`.Values.global`)." (join ", " .)) -}}
{{- end -}}
{{- if hasKey (default dict .Values.commonLabels) "app" -}}
{{- $said = append $said "commonLabels.app does not reach the models' pods: KServe puts its own there, by which its Deployments and Services select them." -}}
{{- end -}}
{{- if and .Values.gateway.enabled (not $routed) (not .Values.colocate) -}}
{{- $said = append $said "gateway.enabled has no effect: no model has a canary or an activator, and KServe makes the route of any other." -}}
{{- end -}}
{{ toJson $said }}
{{- end }}
