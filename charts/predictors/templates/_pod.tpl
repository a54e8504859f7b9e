{{/* Parts of pods that servers and the pre-compile Job share. */}}

{{/* Security of a pod: (list model) */}}
{{- define "predictors.podSecurity" -}}
{{ toYaml (first .).podSecurityContext }}
{{- end }}

{{/* Security of a container, complete, so that an InferenceService that only names our runtime is restricted, too: (list model) */}}
{{- define "predictors.containerSecurity" -}}
{{ toYaml (first .).securityContext }}
{{- end }}

{{/* Requests and limits with the GPUs: (list model) */}}
{{- define "predictors.resources" -}}
{{- $model := first . -}}
{{- $resources := deepCopy (default dict $model.resources) -}}
{{- if int $model.gpu.count -}}
  {{- range $side := list "requests" "limits" -}}
    {{- $of := get $resources $side | default dict -}}
    {{- $_ := set $of $model.gpu.resource ($model.gpu.count | int | toString) -}}
    {{- $_ := set $resources $side $of -}}
  {{- end -}}
{{- end -}}
{{- with $model.resourceClaims -}}
  {{- $claims := list -}}
  {{- range . }}{{ $claims = append $claims (dict "name" .name) }}{{ end -}}
  {{- $_ := set $resources "claims" $claims -}}
{{- end -}}
{{ include "predictors.quantities" $resources }}
{{- end }}

{{/* Where pods may run, by whom they are placed, and how they resolve names: (list model) */}}
{{- define "predictors.placement" -}}
{{- $model := first . -}}
{{- $gpu := or (int $model.gpu.count) $model.resourceClaims -}}
{{- $selector := deepCopy (default dict $model.nodeSelector) -}}
{{- $tolerations := default list $model.tolerations -}}
{{- if $gpu -}}
  {{- $selector = merge (deepCopy (default dict $model.gpu.nodeSelector)) $selector -}}
  {{- $tolerations = concat $tolerations (default list $model.gpu.tolerations) | uniq -}}
{{- end -}}
{{- $place := dict -}}
{{- with $selector }}{{ $_ := set $place "nodeSelector" . }}{{ end -}}
{{- with $tolerations }}{{ $_ := set $place "tolerations" . }}{{ end -}}
{{- with $model.affinity }}{{ $_ := set $place "affinity" . }}{{ end -}}
{{- with $model.priorityClassName }}{{ $_ := set $place "priorityClassName" . }}{{ end -}}
{{- with $model.runtimeClassName }}{{ $_ := set $place "runtimeClassName" . }}{{ end -}}
{{- if and $gpu $model.gpu.runtimeClassName }}{{ $_ := set $place "runtimeClassName" $model.gpu.runtimeClassName }}{{ end -}}
{{- with $model.schedulerName }}{{ $_ := set $place "schedulerName" . }}{{ end -}}
{{- with $model.resourceClaims }}{{ $_ := set $place "resourceClaims" . }}{{ end -}}
{{- with $model.dnsPolicy }}{{ $_ := set $place "dnsPolicy" . }}{{ end -}}
{{- with $model.dnsConfig }}{{ $_ := set $place "dnsConfig" . }}{{ end -}}
{{- with $model.hostAliases }}{{ $_ := set $place "hostAliases" . }}{{ end -}}
{{- with $place }}{{ toYaml . }}{{ end -}}
{{- end }}

{{/* Volumes for `/tmp` and `/dev/shm`: (list model) */}}
{{- define "predictors.scratchVolumes" -}}
{{- $model := first . -}}
- name: tmp
  emptyDir:
    sizeLimit: {{ $model.tmp.size | toYaml }}
- name: shm
  emptyDir:
    medium: Memory
    sizeLimit: {{ $model.shm.size | toYaml }}
{{- end }}

{{- define "predictors.scratchMounts" -}}
- name: tmp
  mountPath: /tmp
- name: shm
  mountPath: /dev/shm
{{- end }}
