{{/* Merges a model's values over the defaults. Sprig's mergeOverwrite can't turn true into false, hence this. */}}

{{/* Versions of each model format, as JSON: flux 1 is FLUX.1; qwen-vl 2.5 is Qwen2.5-VL, 3 is Qwen3-VL. The first is the default. */}}
{{- define "predictors.versions" -}}
{{ toJson (dict "flux" (list "1") "qwen-vl" (list "2.5" "3")) }}
{{- end }}

{{/* The version that a model's InferenceService names. */}}
{{- define "predictors.version" -}}
{{ default (first (get (include "predictors.versions" . | fromJson) .format)) .formatVersion }}
{{- end }}

{{/* Merges the second map over the first, in place; null removes a key: (list base over) */}}
{{- define "predictors.overlay" -}}
{{- $base := first . -}}
{{- range $key, $value := last . -}}
  {{- if kindIs "invalid" $value -}}
    {{- $_ := unset $base $key -}}
  {{- else if and (kindIs "map" $value) (kindIs "map" (get $base $key)) -}}
    {{- include "predictors.overlay" (list (get $base $key) $value) -}}
  {{- else -}}
    {{- $_ := set $base $key $value -}}
  {{- end -}}
{{- end -}}
{{- end }}

{{/* `defaults` with the security contexts laid over those of the release, as JSON. */}}
{{- define "predictors.base" -}}
{{- $base := deepCopy .Values.defaults -}}
{{- range $key := list "podSecurityContext" "securityContext" -}}
  {{- $context := deepCopy (get $.Values $key | default dict) -}}
  {{- include "predictors.overlay" (list $context (get $base $key | default dict)) -}}
  {{- $_ := set $base $key $context -}}
{{- end -}}
{{ toJson $base }}
{{- end }}

{{/* Every enabled model, complete and checked, by name, as JSON. */}}
{{- define "predictors.rooms" -}}
{{- include "predictors.refuse.access" . -}}
{{- $models := dict -}}
{{- $base := include "predictors.base" . | fromJson -}}
{{- range $name, $said := .Values.models -}}
  {{- $model := deepCopy $base -}}
  {{- include "predictors.overlay" (list $model (deepCopy (default dict $said))) -}}
  {{- if contains ":null" (toJson $said) -}}
    {{- $schema := $.Files.Get "files/schema.json" | fromJson -}}
    {{- include "predictors.refuse.gone" (include "predictors.emptied" (list (print "models." $name) $model $schema.definitions.model $schema) | fromJsonArray | list) -}}
  {{- end -}}
  {{- if $model.enabled -}}
    {{- include "predictors.refuse.unused" (list (print "models." $name) (default dict $said) $model) -}}
    {{- include "predictors.refuse" (list $ $name $model) -}}
    {{- if $model.gpuMemoryFraction -}}
      {{- $section := $model.format | replace "-" "_" -}}
      {{- $own := get $model.settings $section | default dict -}}
      {{- $_ := set $own "memory_fraction" $model.gpuMemoryFraction -}}
      {{- $_ := set $model.settings $section $own -}}
    {{- end -}}
    {{- $_ := set $models $name $model -}}
  {{- end -}}
{{- end -}}
{{- if .Values.colocate }}{{ include "predictors.refuse.colocate" (list $ $models) }}{{ end -}}
{{ toJson $models }}
{{- end }}

{{/* A model with one canary's values merged over it: (list model canary), as JSON. */}}
{{- define "predictors.canary" -}}
{{- $model := deepCopy (first .) -}}
{{- include "predictors.overlay" (list $model (omit (deepCopy (last .)) "name" "trafficPercent" "replicas" "image")) -}}
{{ toJson $model }}
{{- end }}
