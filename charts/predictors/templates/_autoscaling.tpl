{{/* Replicas and their autoscaling: (list root name model) */}}

{{- define "predictors.replicas" -}}
{{- $m := index . 2 -}}
{{- $min := int $m.replicas.min -}}
minReplicas: {{ $min }}
maxReplicas: {{ max $min (int $m.replicas.max) }}
{{- if eq (include "predictors.scaler" $m) "keda" }}
autoScaling:
  metrics:
    {{- include "predictors.trigger" (list $m.autoscaling (include "predictors.query" .) $m.autoscaling.threshold) | nindent 4 }}
    {{- with include "predictors.wakeQuery" (list $m) }}
    {{- include "predictors.trigger" (list $m.autoscaling (include "predictors.filled" (list $ .)) $m.autoscaling.wakeThreshold) | nindent 4 }}
    {{- end }}
  behavior:
    {{- include "predictors.behaviour" $m | nindent 4 }}
{{- end }}
{{- end }}

{{/* The query that starts the first pod; with an activator its requests, held or passed on, and those of the last two minutes: (list model) */}}
{{- define "predictors.wakeQuery" -}}
{{- $m := first . -}}
{{- $own := `{namespace="{{ .Namespace }}",model="{{ .Name }}"}` -}}
{{- if $m.autoscaling.wakeQuery -}}
{{ $m.autoscaling.wakeQuery }}
{{- else if $m.activator.enabled -}}
{{ printf `sum(predictors_activator_requests_in_progress%s) + (sum(increase(predictors_activator_requests_total%s[2m])) or vector(0))` $own $own }}
{{- end -}}
{{- end }}

{{/* What scales a model, in KServe's words for it: none unless it is asked for. */}}
{{- define "predictors.scaler" -}}
{{ ternary .autoscaling.class "none" .autoscaling.enabled }}
{{- end }}

{{/* How fast a model is scaled: its seconds, and what `behavior` says over them. */}}
{{- define "predictors.behaviour" -}}
{{- $down := dict "stabilizationWindowSeconds" (int .autoscaling.scaleDownSeconds) -}}
{{- $up := dict "stabilizationWindowSeconds" (int .autoscaling.scaleUpSeconds) -}}
{{ toYaml (mergeOverwrite (dict "scaleDown" $down "scaleUp" $up) (deepCopy .autoscaling.behavior)) }}
{{- end }}

{{/* By what a HorizontalPodAutoscaler scales: (list root name model) */}}
{{- define "predictors.hpaMetrics" -}}
{{- $scaling := (index . 2).autoscaling -}}
{{- $metrics := list -}}
{{- range $name, $percent := dict "cpu" $scaling.targetCPUUtilizationPercentage "memory" $scaling.targetMemoryUtilizationPercentage -}}
{{- if $percent -}}
{{- $target := dict "type" "Utilization" "averageUtilization" (int $percent) -}}
{{- $metrics = append $metrics (dict "type" "Resource" "resource" (dict "name" $name "target" $target)) -}}
{{- end -}}
{{- end -}}
{{ include "predictors.filled" (list . (concat $metrics $scaling.metrics | toYaml)) }}
{{- end }}

{{/* One trigger: KEDA divides the query's value by the number of replicas: (list autoscaling query threshold) */}}
{{- define "predictors.trigger" -}}
{{- $scaling := index . 0 -}}
- type: External
  external:
    metric:
      backend: prometheus
      serverAddress: {{ $scaling.serverAddress | toYaml }}
      query: {{ index . 1 | quote }}
    target:
      type: Value
      value: {{ include "predictors.plain" (index . 2) | quote }}
    {{- with $scaling.authenticationRef }}
    authenticationRef:
      authenticationRef:
        name: {{ . | toYaml }}
      {{- with $scaling.authModes }}
      authModes: {{ . | toYaml }}
      {{- end }}
    {{- end }}
{{- end }}

{{/* The load of all replicas: both sums are empty without pods, which KEDA takes for 0. */}}
{{- define "predictors.query" -}}
{{- $asked := (index . 2).autoscaling.query | default `sum(predictors_requests_waiting{namespace="{{ .Namespace }}",model="{{ .Name }}"}) + sum(predictors_requests_running{namespace="{{ .Namespace }}",model="{{ .Name }}"})` -}}
{{ include "predictors.filled" (list . $asked) }}
{{- end }}

{{/* A query with the model's name and namespace: (list (list root name model) query) */}}
{{- define "predictors.filled" -}}
{{- $root := index (first .) 0 -}}{{- $name := index (first .) 1 -}}
{{ regexReplaceAll `\{\{\s*\.Namespace\s*\}\}` (regexReplaceAll `\{\{\s*\.Name\s*\}\}` (last .) $name) (include "predictors.namespace" $root) }}
{{- end }}
