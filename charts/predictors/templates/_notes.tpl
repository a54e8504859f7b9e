{{/* The text that Helm prints after an install. */}}
{{- define "predictors.notes" -}}
{{- $models := include "predictors.models" . | fromJson }}
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
== {{ $name }} ({{ $model.format }}, {{ $model.storage.uri }})
kubectl -n {{ include "predictors.namespace" $ }} wait --for=condition=Ready isvc/{{ $name }} --timeout={{ int $model.probes.startup.budgetSeconds }}s
kubectl -n {{ include "predictors.namespace" $ }} port-forward svc/{{ $name }}-predictor {{ $port }}:80 &
{{ include "predictors.curl" (list $ $name $model (printf "%s://127.0.0.1:%d" $scheme (int $port)) $picture) }}
# in the cluster, from a pod that may call it:
{{ include "predictors.curl" (list $ $name $model (include "predictors.address" (list $ $name)) $picture) }}
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
{{- $canaries := false -}}
{{- range $name, $model := $models -}}
  {{- if $model.canary }}{{ $canaries = true }}{{ end -}}
  {{- $limit := dig "limits" "memory" "" (default dict $model.resources) | toString -}}
  {{- if and (or (int $model.gpu.count) $model.resourceClaims) (has $limit (list "1Gi" "2Gi" "3Gi" "4Gi" "4G")) -}}
  {{- $said = append $said (printf "models.%s.resources.limits.memory is %s: weights pass through it on their way to the GPU, and a full-size model is killed there. See Sizing in docs/deploy.md." $name $limit) -}}
  {{- end -}}
  {{- if and (not $model.autoscaling.enabled) $model.autoscaling.wakeQuery -}}
  {{- $said = append $said (printf "models.%s.autoscaling.wakeQuery has no effect without autoscaling.enabled." $name) -}}
  {{- end -}}
  {{- if eq (include "predictors.scaler" $model) "hpa" -}}
  {{- range $resource, $percent := dict "cpu" $model.autoscaling.targetCPUUtilizationPercentage "memory" $model.autoscaling.targetMemoryUtilizationPercentage -}}
  {{- range $i, $each := $model.extraContainers -}}
  {{- if and $percent (not (dig "resources" "requests" $resource "" $each)) -}}
  {{- $said = append $said (printf "models.%s.extraContainers[%d] requests no %s: unless the namespace's LimitRange gives it one, Kubernetes can't reckon the pod's percentage, and nothing is scaled. Give it resources.requests, or say autoscaling.metrics of the type ContainerResource." $name $i $resource) -}}
  {{- end -}}
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
{{- if and .Values.gateway.enabled (not $canaries) -}}
{{- $said = append $said "gateway.enabled has no effect: no model has a canary, and KServe makes the route of a model without one." -}}
{{- end -}}
{{ toJson $said }}
{{- end }}
