{{/* Annotations that KServe copies to its Ingress, for a controller that would cut long jobs: (list root model) */}}
{{- define "predictors.ingress" -}}
{{- $model := last . -}}
{{- if eq $model.ingress.controller "nginx" -}}
nginx.ingress.kubernetes.io/proxy-read-timeout: {{ $model.timeoutSeconds | int | quote }}
nginx.ingress.kubernetes.io/proxy-send-timeout: {{ $model.timeoutSeconds | int | quote }}
nginx.ingress.kubernetes.io/proxy-body-size: {{ dig "server" "max_body_bytes" 67108864 $model.settings | int64 | quote }}
nginx.ingress.kubernetes.io/proxy-buffering: "off"
{{- if (first .).Values.tls.secretName }}
nginx.ingress.kubernetes.io/backend-protocol: HTTPS
{{- end }}
{{- end -}}
{{- end }}
