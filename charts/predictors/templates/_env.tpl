{{/* A value as a setting is written: Helm reads 67108864 as a float, which would print 6.7108864e+07. */}}
{{- define "predictors.plain" -}}
{{ kindIs "string" . | ternary . (toJson .) }}
{{- end }}

{{/* Environment of a model's container: the chart's own, then settings, then `env`: (list root model) */}}
{{- define "predictors.env" -}}
{{- $model := last . -}}
- name: PREDICTORS_SERVER_LINGER_S
  value: {{ $model.drain.lingerSeconds | int | quote }}
- name: PREDICTORS_SERVER_DRAIN_TIMEOUT_S
  value: {{ $model.drain.graceSeconds | int | quote }}
{{- if not (hasKey (get $model.settings "queue" | default dict) "default_timeout_s") }}
- name: PREDICTORS_QUEUE_DEFAULT_TIMEOUT_S
  value: {{ $model.timeoutSeconds | int | quote }}
{{- end }}
{{- with include "predictors.checkerEnv" (list $model) }}
{{ . }}
{{- end }}
{{- with include "predictors.loraPaths" (list $model) }}
- name: PREDICTORS_SERVER_LORAS
  value: {{ . | quote }}
{{- end }}
{{- range $section, $keys := $model.settings }}
{{- range $key, $value := $keys }}
- name: {{ printf "PREDICTORS_%s_%s" $section $key | upper | toYaml }}
  value: {{ include "predictors.plain" $value | quote }}
{{- end }}
{{- end }}
{{- with $model.env }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Environment of every server, also for an InferenceService that is not the chart's. */}}
{{- define "predictors.runtimeEnv" -}}
- name: PREDICTORS_SERVER_HOST
  value: 0.0.0.0
{{- /* a folder inside the volume: the volume's root may be world-writable, and the server uses no such folder */}}
- name: PREDICTORS_COMPUTE_CACHE_DIR
  value: /var/cache/predictors/compiled
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: POD_NAMESPACE
  valueFrom:
    fieldRef:
      fieldPath: metadata.namespace
{{- end }}
