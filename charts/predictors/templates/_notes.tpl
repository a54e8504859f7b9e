{{/* The text that Helm prints after an install. */}}
{{- define "predictors.notes" -}}
{{- $models := include "predictors.models" . | fromJson }}
{{- $port := 18079 }}
{{- $picture := .Files.Get "files/circle.png" | b64enc }}
{{- if not $models }}
No model is enabled: set `models`.
{{- end }}
{{- range $name, $model := $models }}
{{- $port = add1 $port }}
== {{ $name }} ({{ $model.format }}, {{ $model.storage.uri }})
kubectl -n {{ $.Release.Namespace }} wait --for=condition=Ready isvc/{{ $name }} --timeout={{ int $model.probes.startup.budgetSeconds }}s
kubectl -n {{ $.Release.Namespace }} port-forward svc/{{ $name }}-predictor {{ $port }}:80 &
{{ include "predictors.curl" (list $name $model (printf "http://127.0.0.1:%d" (int $port)) $picture) }}
# in the cluster, from a pod that may call it:
{{ include "predictors.curl" (list $name $model (printf "http://%s-predictor.%s.svc" $name $.Release.Namespace) $picture) }}
{{ end }}
{{- if and .Values.tests.enabled $models }}
One request to each model, when they are ready:
helm -n {{ .Release.Namespace }} test {{ .Release.Name }}
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

{{/* A curl line that works: a picture from a prompt, or words from a picture: (list name model address picture) */}}
{{- define "predictors.curl" -}}
{{- $name := index . 0 -}}{{- $url := index . 2 -}}
{{- if eq (index . 1).format "flux" -}}
curl -sf {{ $url }}/v2/models/{{ $name }}/infer -H 'Content-Type: application/json' -d '{"inputs": [{"name": "prompt", "datatype": "BYTES", "shape": [1], "data": ["a large red circle on a white background"]}], "parameters": {"seed": 7}}' | python3 -c 'import base64, json, sys; sys.stdout.buffer.write(base64.b64decode(next(o["data"][0] for o in json.load(sys.stdin)["outputs"] if o["name"] == "image")))' > {{ $name }}.png
{{- else -}}
curl -sf {{ $url }}/v2/models/{{ $name }}/infer -H 'Content-Type: application/json' -d '{"inputs": [{"name": "prompt", "datatype": "BYTES", "shape": [1], "data": ["Describe this picture."]}, {"name": "image", "datatype": "BYTES", "shape": [1], "data": ["{{ index . 3 }}"]}], "parameters": {"max_tokens": 32}}'
{{- end -}}
{{- end }}
