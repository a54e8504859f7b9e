{{/* What a model says laid over the defaults. Sprig's mergeOverwrite can't turn true into false, hence this. */}}

{{/* Lays the second map over the first, in place; null takes a key away: (list base over) */}}
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

{{/* Every enabled model, complete and checked, by name, as JSON. */}}
{{- define "predictors.models" -}}
{{- $models := dict -}}
{{- range $name, $said := .Values.models -}}
  {{- $model := deepCopy $.Values.defaults -}}
  {{- include "predictors.overlay" (list $model (deepCopy (default dict $said))) -}}
  {{- if $model.enabled -}}
    {{- include "predictors.refuse" (list $ $name $model) -}}
    {{- $_ := set $models $name $model -}}
  {{- end -}}
{{- end -}}
{{ toJson $models }}
{{- end }}

{{/* One canary as the model that it would be: (list model canary), as JSON. */}}
{{- define "predictors.canary" -}}
{{- $model := deepCopy (first .) -}}
{{- include "predictors.overlay" (list $model (omit (deepCopy (last .)) "name" "trafficPercent" "replicas" "image")) -}}
{{ toJson $model }}
{{- end }}
