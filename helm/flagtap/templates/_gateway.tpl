{{/* The pod of a gateway, whichever workload it is in, which adds the volume for the data. */}}
{{- define "flagtap.gateway.pod" -}}
{{- $checksums := include "flagtap.checksums" (dict "root" . "config" (include "flagtap.gateway.config" .)) -}}
metadata:
  {{- if or $checksums .Values.podAnnotations }}
  annotations:
    {{- with $checksums }}
    {{- . | nindent 4 }}
    {{- end }}
    {{- with .Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- end }}
  labels:
    {{- include "flagtap.selector" . | nindent 4 }}
    app.kubernetes.io/component: gateway
    flagtap.dev/component: gateway
    flagtap.dev/inject: "false"
    {{- with .Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  {{- include "flagtap.podSpec" . | nindent 2 }}
  serviceAccountName: {{ include "flagtap.serviceAccountName" . | quote }}
  # The wait before TERM counts too.
  terminationGracePeriodSeconds: {{ add .Values.gracePeriodSeconds 5 }}
  topologySpreadConstraints:
    {{- with .Values.topologySpreadConstraints }}
    {{- toYaml . | nindent 4 }}
    {{- else }}
    {{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
    - topologyKey: {{ . }}
      maxSkew: 1
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "flagtap.selector" $ | nindent 10 }}
          app.kubernetes.io/component: gateway
    {{- end }}
    {{- end }}
  containers:
    - name: flagtap
      {{- include "flagtap.container" . | nindent 6 }}
      args: [serve, --config, /etc/flagtap/config.yaml]
      env:
        {{- include "flagtap.env" . | nindent 8 }}
      {{- with include "flagtap.secretName" . }}
      envFrom:
        - secretRef: { name: {{ . | quote }} }
      {{- end }}
      ports:
        - { name: flagtap, containerPort: 8030 }
        - { name: flagtap-metrics, containerPort: 8031 }
      # A queue of many parts takes a while to open; traffic passes meanwhile, so readiness does not wait for it.
      startupProbe:
        httpGet: { path: /livez, port: flagtap-metrics }
        periodSeconds: 1
        failureThreshold: 60
      readinessProbe:
        httpGet: { path: /readyz, port: flagtap-metrics }
        periodSeconds: 5
      livenessProbe:
        httpGet: { path: /livez, port: flagtap-metrics }
        periodSeconds: 10
        failureThreshold: 6
      lifecycle:
        # Nodes and Ingresses hear late that a pod leaves a Service, and flagtap closes its port when nobody has been connected
        # for two seconds. What still comes meanwhile is served.
        preStop:
          exec: { command: [/flagtap, wait, 5s] }
      resources: {{- toYaml (.Values.resources | default dict) | nindent 8 }}
      securityContext: {{- include "flagtap.securityContext" . | nindent 8 }}
      volumeMounts:
        {{- include "flagtap.volumeMounts" . | nindent 8 }}
  volumes:
    {{- include "flagtap.volumes" (dict "root" . "config" (include "flagtap.fullname" .) "secret" (include "flagtap.secretName" .)) | nindent 4 }}
{{- end }}

{{/* What the pods of gateway, injector and drains have in common. */}}
{{- define "flagtap.podSpec" -}}
automountServiceAccountToken: false
{{- with .Values.image.pullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
securityContext: {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* What lets clients in from outside the cluster, in words, while the network policy lets in the namespace's own pods alone. */}}
{{- define "flagtap.shutOut" -}}
{{- if and .Values.networkPolicy.enabled (ne .Values.mode "none") }}
{{- $others := list }}
{{- range .Values.networkPolicy.clients }}
{{- if or (hasKey . "namespaceSelector") (hasKey . "ipBlock") }}
{{- $others = append $others . }}
{{- end }}
{{- end }}
{{- $ways := list }}
{{- if .Values.ingress.enabled }}{{ $ways = append $ways "ingress" }}{{ end }}
{{- if .Values.httpRoute.enabled }}{{ $ways = append $ways "httpRoute" }}{{ end }}
{{- if ne .Values.service.type "ClusterIP" }}{{ $ways = append $ways (printf "service.type %s" .Values.service.type) }}{{ end }}
{{- if not $others }}{{ join ", " $ways }}{{ end }}
{{- end }}
{{- end }}

{{/* Not empty if an annotation makes the Ingress' controller speak TLS to the Service, or pass the clients' on. */}}
{{- define "flagtap.tlsToService" -}}
{{- $ofIngress := dict
  "nginx.ingress.kubernetes.io/backend-protocol" "HTTPS"
  "nginx.ingress.kubernetes.io/ssl-passthrough" "true"
  "haproxy.org/server-ssl" "true"
  "haproxy.org/ssl-passthrough" "true"
  "alb.ingress.kubernetes.io/backend-protocol" "HTTPS"
  "appgw.ingress.kubernetes.io/backend-protocol" "HTTPS"
  "route.openshift.io/termination" "reencrypt|passthrough"
}}
{{- /* GKE's goes by the port's name. */}}
{{- $ofService := dict
  "traefik.ingress.kubernetes.io/service.serversscheme" "https"
  "cloud.google.com/app-protocols" `.*"https" *: *"HTTPS".*`
}}
{{- range list (list $ofIngress .Values.ingress.annotations) (list $ofService .Values.service.annotations) }}
{{- $known := first . }}
{{- range $name, $value := last . }}
{{- with index $known $name }}
{{- if regexMatch (printf "^(?i:%s)$" .) $value }}{{ $name }}{{ end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
